"""From harness tasks to tokens: examples, encoding, training sets."""
