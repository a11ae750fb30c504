// A clock that tells the time in words.
const HOURS = ["twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"];

function inWords(date) {
  const minutes = date.getMinutes();
  if (minutes < 15) return `just after ${HOURS[date.getHours() % 12]}`;
  if (minutes < 45) return `around half past ${HOURS[date.getHours() % 12]}`;
  return `nearly ${HOURS[(date.getHours() + 1) % 12]}`;
}

setInterval(() => console.log(inWords(new Date())), 60_000);
