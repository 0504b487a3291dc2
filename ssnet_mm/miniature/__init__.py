"""The built-in data set: drawn, in Pascal VOC's layout, for whoever has no data yet."""
