"""From a data set's rows to the conversations that are trained on and the questions that are held out; no model."""
