"""A site's labelled images: who is held out, and what is answered about them."""
