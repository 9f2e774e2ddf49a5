"""One module a kind of data set: how its files are found, proved and read into a Dataset."""
