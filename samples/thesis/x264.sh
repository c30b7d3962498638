# Video encoding: 30 frames of 640 by 360, a pattern that moves.
awk 'BEGIN { for (i = 0; i < 500000; i++) { x = i % 97; y = int(i / 640) % 61; printf "%c", 33 + (x < 48 ? x : 96 - x) + (y < 30 ? y : 60 - y) } }' >base
for i in $(seq 0 29); do tail -c +$((1 + i * 1283)) base | head -c 345600; done >video.yuv
nestwalk-mark 3
x264 --quiet --threads 1 --input-res 640x360 --fps 30 -o /dev/null video.yuv
nestwalk-mark 4
