"""The DVC stages: `ls stages` is the DAG. Each parses its arguments, calls the library, and writes."""
