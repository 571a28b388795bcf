"""What travels between the notebook and the tracer: messages, schemas, segments."""
