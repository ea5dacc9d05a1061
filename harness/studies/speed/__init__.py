"""The influence engine side by side with other people's, on the same model, data and definition."""
