"""The study of discrete units, phones and emotion."""
