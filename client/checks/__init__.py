"""`fedpretext site check`: images, machine, server and study, before a site joins."""
