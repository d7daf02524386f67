"""The hand-over of prepared jobs, and reading one back: claim, define, submit, record, release."""
