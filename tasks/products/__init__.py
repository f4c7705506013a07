"""From a forecast to what users read: the CF dataset, its report and pictures, atomic publication, retention."""
