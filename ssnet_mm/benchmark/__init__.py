"""Segmentors compared side by side on synthetic images: size, arithmetic, speed and memory."""
