"""What `course grade` is made of: submissions, the library without an answer, bound processes."""
