"""What the keys of the main screen do, by group. May import the workbench, dialogs, jobs and everything below them."""
