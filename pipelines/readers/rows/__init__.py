"""Readers of text that others extracted, as rows of a table.

parquet.py   Parquet of Wikipedia's articles, as Hugging Face's wikimedia/wikipedia
"""
