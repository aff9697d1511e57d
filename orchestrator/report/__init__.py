"""Write a study's front as a page, a table, a picture or plain data."""
