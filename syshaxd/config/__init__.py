"""YAML in, frozen and checked values out."""
