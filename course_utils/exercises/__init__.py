"""What is asked: the exercises of each lesson in a module of the lesson's key.

A module holds `EXERCISES`, a list: for each function to write its reference, the cases it is tried on and the
mistakes that learners are likely to make. How an answer is judged by them is in `course_utils.checking`.
"""
