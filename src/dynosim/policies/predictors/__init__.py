"""Load predictors of the slow loop, one per file; the file's name is the predictor's name."""
