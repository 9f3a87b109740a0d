"""Other trainers to compare with: TextBrewer and Hugging Face's Trainer, in a virtual environment of their own."""
