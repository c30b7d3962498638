# Mails of made-up words, counted, sorted and rewritten, in rounds of growing size.
use strict;
use warnings;
my $seed = 1;
sub draw { $seed = ($seed * 1103515245 + 12345) % 2147483648; return $seed >> 8 }
my $bytes = 0;
for my $round (1 .. 6) {
    my (%count, @mails);
    for my $mail (1 .. 250 * $round) {
        my @words = map { join '', map { chr(97 + draw() % 26) } 1 .. 2 + draw() % 5 } 1 .. 40;
        $count{$_}++ for @words;
        push @mails, join ' ', @words;
    }
    my @often = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 19];
    for my $mail (@mails) {
        $mail =~ s/\b$_\b/<$_>/g for @often;
        $bytes += length $mail;
    }
}
print "$bytes bytes\n";
