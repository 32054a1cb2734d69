"""Reports for people: model card, datasheet, page, figures, the comment on a pull request."""
