"""C that is being typed: what is at the cursor, and which names fit there. Pure: what the kernel knows, others ask."""
