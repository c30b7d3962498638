# Text in a scripting language: hashes that grow, sorting, substitutions.
nestwalk-mark 3
perl text.pl
nestwalk-mark 4
