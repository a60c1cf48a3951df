"""What a model has to beat: simple rules behind the same forecast contract."""
