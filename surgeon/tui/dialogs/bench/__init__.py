"""The bench (L): the queue of work and the trials on one page, with what is asked there. Imports what dialogs may."""
