"""Clock GPU code without a GPU: read SASS, execute its integer part, play the warps of a block on a multiprocessor."""
