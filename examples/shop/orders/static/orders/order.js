// Fetches the part of the page that changes until nothing is going to change any more.
const place = document.getElementById("progress");

async function refresh() {
  try {
    const answer = await fetch(place.dataset.url, { cache: "no-store" });
    if (answer.ok) place.innerHTML = await answer.text();
  } catch {
    // The server is away for a moment: what is shown stays, and the next look tells more.
  }
  follow();
}

function follow() {
  if (!place.querySelector("[data-settled]")) setTimeout(refresh, document.hidden ? 5000 : 500);
}

follow();
