"""GPU and model cards, what they hold (KV memory) and how fast they could possibly be (roofline)."""
