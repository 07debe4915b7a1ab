"""Rows of data files: JSON, CSV, Parquet, Arrow and logs of inspect, compressed or not."""
