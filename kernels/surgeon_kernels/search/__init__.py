"""What the quantizers of several types share: searches for scales, codebooks, packing. May import lanes, no type."""
