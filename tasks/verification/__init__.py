"""From products and later frames to scores that add up, skill tables and the verdict on skill."""
