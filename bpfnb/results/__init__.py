"""Bytes to pandas: outputs, maps and costs as DataFrames."""
