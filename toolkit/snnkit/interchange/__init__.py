"""Networks made elsewhere: the NIR format, read and written."""
