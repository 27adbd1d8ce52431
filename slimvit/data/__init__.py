"""Images, data sets, preprocessing, loaders."""
