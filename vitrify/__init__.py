"""vitrify: a compiler for language-model pipelines."""
