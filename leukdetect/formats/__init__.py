"""What each kind of image file needs before its pixels are those that a viewer shows; `leukdetect.images` uses it."""
