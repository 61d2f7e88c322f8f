"""Record which experts a model of transformers chooses while it reads and continues text."""
