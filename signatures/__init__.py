"""The front end: typed signatures as frozen data, the prompt they render to, the reply they parse."""
