"""What the promises cost: ratios of times that were measured in one run on one server.

``python -m bench``, or ``make bench``. rows.py has a function for each row of the table, measure.py
the way of measuring, report.py what is printed and kept. docs/performance.md explains the numbers.
"""
