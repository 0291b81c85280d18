"""What gives Transcripts: live sockets, capture files."""
