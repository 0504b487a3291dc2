"""Other people's weights, read and turned into ours."""
