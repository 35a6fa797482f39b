"""What TRL's trainers lack, one file each: the few subclasses and callbacks that a stage needs."""
