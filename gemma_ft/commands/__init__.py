"""One short file a command: words in, calls, words out."""
