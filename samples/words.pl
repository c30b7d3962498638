# Counts made-up words, sorts them, and rewrites a text with them.
use strict;
use warnings;
my ($seed, %count, @text) = (1);
sub draw { $seed = ($seed * 1103515245 + 12345) % 2147483648; return $seed >> 8 }
for (1 .. 3000) {
    my $word = join '', map { chr(97 + draw() % 26) } 1 .. 2 + draw() % 3;
    $count{$word}++;
    push @text, $word;
}
my @often = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 99];
my $text = join ' ', @text;
for my $i (0 .. $#often) { $text =~ s/\b$often[$i]\b/word$i/g if $i % 10 == 0 }
printf "%d words, %d different, %d bytes\n", scalar @text, scalar keys %count, length $text;
