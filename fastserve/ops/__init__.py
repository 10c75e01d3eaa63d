"""Pure array functions with ``out=``: no classes, no state, no memory of their own."""
