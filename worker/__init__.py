"""What turns rows into students: it claims jobs, runs each in a process of its own, and hands in what comes out.

``api`` imports ``worker.queue`` and nothing else from here, so this module stays empty of imports.
"""
