"""From photos and annotations as people have them to a data set that can be trained on."""
