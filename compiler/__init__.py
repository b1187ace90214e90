"""The middle and back end: the passes, the evaluator, the ledger, the search, the evidence, emission."""
