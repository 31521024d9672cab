"""Import demonstrations from Minari, LeRobot, npz files and Parquet tables into the published layout."""
