"""Train a small mixture-of-experts language model and record its routing: the sample trace in conf/samples."""
