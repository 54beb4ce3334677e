// Keys in a grid: one of its buttons is in the order of Tab, arrows lead to the others.

export function walkable(grid) {
  grid.addEventListener('keydown', (event) => {
    const columns = getComputedStyle(grid).gridTemplateColumns.split(' ').length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const buttons = [...grid.querySelectorAll('button')];
    buttons[buttons.indexOf(document.activeElement) + steps[event.key]]?.focus();
  });
  grid.addEventListener('focusin', ({ target }) => target.matches('button') && stop(grid, target));
}

/** Let Tab stop at this button of the grid, or at its first. */
export function stop(grid, button = grid.querySelector('button')) {
  for (const other of grid.querySelectorAll('button')) other.tabIndex = -1;
  if (button) button.tabIndex = 0;
}
